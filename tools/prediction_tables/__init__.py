"""Tables of predictions, as Markdown: what tools/predictions_page.py puts into the documents."""
