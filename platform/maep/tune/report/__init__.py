"""Tables, charts and the page of a search."""
