"""Maps of recorded tokens over the patch grid, and how they are drawn on the photograph."""
