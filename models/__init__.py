"""Scale models: what gives a guidance scale for a timestep, a gap norm and a lambda.

It needs only torch and safetensors, and imports neither ComfyUI nor the rest of the pack.
"""
