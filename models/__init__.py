"""Scale models: what gives a guidance scale for a timestep, a gap norm and a lambda.

Needs torch and safetensors only; imports neither ComfyUI nor the rest of the pack.
"""
