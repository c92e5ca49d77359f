"""Figures as ComfyUI pictures. They need matplotlib; without it, the picture is a sentence that says so."""
