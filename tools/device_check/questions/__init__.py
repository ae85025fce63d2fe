"""What a check asks a machine. A question is a function (machine, ...) -> a JSON object; it raises where the machine
does not do what the library promises. `plan.py` lists them with their arguments."""
