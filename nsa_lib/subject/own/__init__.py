"""What a user brings in place of ours: an attention, a kernel of the selected branch, or a whole model.

`spec` reads how it is named, without torch. `loading` imports and calls it, `attention` and `model` give it the shape
that the train step and the instrument know. All of a user's code runs in a worker.
"""
