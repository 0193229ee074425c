"""Digits: logistic regression by stochastic gradient descent on 100 of scikit-learn's 8x8 digits."""

import numpy as np
from sklearn.datasets import load_digits
from sklearn.linear_model import SGDClassifier

x, y = load_digits(return_X_y=True)
x, n_train, n_test = x / 16, 100, 300
train_x, train_y, test_x, test_y = x[:n_train], y[:n_train], x[n_train:][:n_test], y[n_train:][:n_test]
outputs = {"test_margins": (n_test,)}


def train(mask, seed, device):
    model = SGDClassifier(loss="log_loss", alpha=0.03, max_iter=20, tol=None, average=True)
    model.fit(train_x[mask], train_y[mask])  # its order is drawn from NumPy's generator
    logits = np.full((n_test, 10), -10.0)  # a class that the mask leaves out is not predicted
    logits[:, model.classes_] = model.decision_function(test_x)
    correct = np.take_along_axis(logits, test_y[:, None], axis=1)[:, 0]
    np.put_along_axis(logits, test_y[:, None], -np.inf, axis=1)
    return {"test_margins": correct - logits.max(axis=1)}


def names():
    texts = [f"a {label}, digit {number}" for number, label in enumerate(y)]
    return {"train": texts[:n_train], "test": texts[n_train:][:n_test]}
