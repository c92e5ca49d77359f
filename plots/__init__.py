"""Figures as ComfyUI pictures: drawn with matplotlib where it is installed, a sentence on a picture where it is not."""
