"""Everything a person would rather see than read: plots (``plots``) and self-contained HTML pages (``page``)."""
