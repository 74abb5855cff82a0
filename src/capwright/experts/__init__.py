"""Labels at every pixel by models that were trained for them, as sidecars beside the captions.

`stage.py` runs the experts over a corpus: `hub.py` those of transformers, `small.py` one that is
trained on the few labelled pictures of the corpus itself; `normals.py` derives surfaces from depth.
`pretrain/objectives/pseudo_labels.py` learns from what they say.
"""
