"""The paper's formulas written down densely and slowly, sharing nothing with the package but the pool's weights."""

import numpy as np


def dense_contributions(z, pool):
    """r (view, head, neuron, embed), m (view, head, token, embed) and y (view, embed), in float64, by plain loops."""
    weight = {
        name: getattr(pool, name).double().numpy()
        for name in (
            "positional_embedding",
            "q_weight",
            "k_weight",
            "v_weight",
            "c_weight",
            "q_bias",
            "k_bias",
            "v_bias",
            "c_bias",
        )
    }
    z = z.double().numpy()
    views, _, neurons = z.shape
    heads, embed = pool.heads, len(weight["c_bias"])
    width = neurons // heads
    x = np.concatenate([z.mean(1, keepdims=True), z], 1) + weight["positional_embedding"]
    tokens = x.shape[1]
    pair = np.zeros((views, heads, neurons, embed))
    token = np.zeros((views, heads, tokens, embed))
    total = np.zeros((views, embed))
    for view in range(views):
        for head in range(heads):
            rows = slice(head * width, (head + 1) * width)
            query = weight["q_weight"][rows] @ x[view, 0] + weight["q_bias"][rows]
            key = x[view] @ weight["k_weight"][rows].T + weight["k_bias"][rows]
            score = key @ query / np.sqrt(width)
            share = np.exp(score - score.max())
            share /= share.sum()
            output, value = weight["c_weight"][:, rows], weight["v_weight"][rows]
            bias = output @ weight["v_bias"][rows] / neurons + weight["c_bias"] / (heads * neurons)
            for neuron in range(neurons):
                coefficient = sum(share[t] * x[view, t, neuron] for t in range(tokens))
                pair[view, head, neuron] = coefficient * (output @ value[:, neuron]) + bias
            for t in range(tokens):
                carried = output @ (value @ x[view, t] + weight["v_bias"][rows])
                token[view, head, t] = share[t] * carried + weight["c_bias"] / (heads * tokens)
            total[view] += output @ (share @ (x[view] @ value.T + weight["v_bias"][rows]))
        total[view] += weight["c_bias"]
    return pair, token, total


def dense_direction(contribution, top_images, components):
    """Directions, explained shares and kept norms of one unit from its dense contributions (view, embed), by SVD."""
    centred = contribution - contribution.mean(0)
    norm = np.linalg.norm(centred, axis=1)
    kept = centred[np.argsort(-norm, kind="stable")[:top_images]]
    _, singular, right = np.linalg.svd(kept, full_matrices=False)
    right = right[:components]
    for row in right:
        projection = kept @ row
        if (projection > 0).sum() < (projection < 0).sum():
            row *= -1
    return right, (singular**2 / (singular**2).sum())[:components], np.sort(norm)[::-1][:top_images].mean()


def cosine(a, b):
    """Cosine of two vectors, 0 if one is zero."""
    length = np.linalg.norm(a) * np.linalg.norm(b)
    return a @ b / length if length else 0.0
