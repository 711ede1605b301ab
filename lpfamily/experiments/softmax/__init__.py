"""Section V: softmax regression, its distances to the decision boundary and its errors under noise."""
