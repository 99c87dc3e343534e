"""What people look at: tables, figures, overlays, one page without a network."""
