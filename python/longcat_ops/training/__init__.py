"""Training-side pieces that an inference library still needs: today the controller of the router's selection bias."""

from .bias_controller import BiasController

__all__ = ["BiasController"]
