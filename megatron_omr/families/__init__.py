"""What differs between the families of models, where they are chosen: one file a family, see docs/families.md."""
