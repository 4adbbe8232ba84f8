"""The page's parts: layout, handlers and wording. Of `silo`, only what is in here uses gradio."""
