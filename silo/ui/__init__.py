"""What the page says and shows, apart from its layout; nothing here imports gradio."""
