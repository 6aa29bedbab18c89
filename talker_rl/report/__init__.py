"""Pages that people look at and listen to: one self-contained HTML file each."""
