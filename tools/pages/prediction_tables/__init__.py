"""Tables of predictions, as Markdown: what tools/pages/predictions_page.py puts into the documents."""
