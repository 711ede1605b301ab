"""Section V: softmax regression, its distances to the boundary and its errors under noise."""
