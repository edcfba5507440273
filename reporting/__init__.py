"""What a page is made of: blocks, charts, HTML, Markdown, tables. It knows no task."""
