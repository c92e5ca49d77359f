"""The demo: runs in ComfyUI's own Python, which has aiohttp and Pillow."""
