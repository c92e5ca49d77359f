"""The bundled demo: a tiny text-to-image model, with its renderer, tokenizer, judge and weights."""
