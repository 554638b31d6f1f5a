"""What a trained model selects: `python -m tests.bench_selection`.

It trains the checklist's 12 layers at S = 8,192 with `fused` on text for a given time, then looks at what each layer
selects on text that it was not trained on: agreement of neighbours, blocks of a tile together, entropy, near ties.
One layer's selection is kept, packed, so that the benchmark of attention can be run on a real one beside random ones.
"""
