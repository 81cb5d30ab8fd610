"""The paper's formulas, computed densely by plain loops. They share only the pool's weights with the package."""

import numpy as np


def dense_contributions(z, pool):
    """Return r (view, head, neuron, embed), m (view, head, token, embed) and y (view, embed) in float64."""
    readout = pool.readout
    query_weight, query_bias = pool.query.double().numpy(), pool.query_bias.double().numpy()
    key_weight, key_bias = pool.key.double().numpy(), pool.key_bias.double().numpy()
    value_weight, value_bias = readout.value.double().numpy(), readout.value_bias.double().numpy()
    output_weight, output_bias = readout.output.double().numpy(), readout.output_bias.double().numpy()
    z = z.double().numpy()
    views, _, neurons = z.shape
    heads, width, _ = value_weight.shape
    x = np.concatenate([z.mean(1, keepdims=True), z], 1) + pool.positional_embedding.double().numpy()
    tokens, embed = x.shape[1], len(output_bias)
    pair = np.zeros((views, heads, neurons, embed))
    token = np.zeros((views, heads, tokens, embed))
    total = np.zeros((views, embed))
    for view in range(views):
        for head in range(heads):
            query = query_weight[head] @ x[view, 0] + query_bias[head]
            key = x[view] @ key_weight[head].T + key_bias[head]
            score = key @ query / np.sqrt(width)
            share = np.exp(score - score.max())
            share /= share.sum()
            output, value = output_weight[head], value_weight[head]
            constant = output @ value_bias[head] / neurons + output_bias / (heads * neurons)
            for neuron in range(neurons):
                coefficient = sum(share[t] * x[view, t, neuron] for t in range(tokens))
                pair[view, head, neuron] = coefficient * (output @ value[:, neuron]) + constant
            for t in range(tokens):
                written = output @ (value @ x[view, t] + value_bias[head])
                token[view, head, t] = share[t] * written + output_bias / (heads * tokens)
            total[view] += output @ (share @ (x[view] @ value.T + value_bias[head]))
        total[view] += output_bias
    return pair, token, total


def dense_direction(contribution, top_images, components):
    """Return directions, explained shares and mean kept norm of one unit from its dense contributions (view, embed), by SVD."""
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
    """Return the cosine of two vectors, 0 if one is zero."""
    length = np.linalg.norm(a) * np.linalg.norm(b)
    return a @ b / length if length else 0.0
