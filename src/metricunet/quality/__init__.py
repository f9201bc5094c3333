"""How far a prediction can be trusted, judged by its masks and by the cards of its models, without any network.

`prediction` is the plain value that is judged. `findings` measures it, with `masks` for what a mask is like and
`boundary` for how far its boundary is expected to be off; `checks` is the table of what raises a flag, and
`verdict` is what comes of all that. `temperature` makes probabilities as sure as they are right.
"""
