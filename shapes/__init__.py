"""The embedded demo: a tiny text-to-image model of our own, with its renderer, tokenizer, judge and weights."""
