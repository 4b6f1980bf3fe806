"""Maps of recorded tokens over the patch grid."""
