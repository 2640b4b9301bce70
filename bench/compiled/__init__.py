"""The decoding loop of `engine=compiled`: caches, attention, choosing tokens, and the step that joins them."""
