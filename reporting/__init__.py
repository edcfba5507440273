"""The parts of a report page, for any task: blocks, charts, HTML, Markdown, tables."""
