"""Labelled data sets in their standard on-disk layout, one module each; `scenes` is made here."""
