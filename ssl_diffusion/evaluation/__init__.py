"""How good is it: Frechet distances, agreement, seams, copying, and the report that shows them."""
