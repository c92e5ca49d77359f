"""How a learned scale enters ComfyUI's sampling: units of the gap, folding, the guided step, guider, patch, sampler, trace."""
