"""Estimators of scikit-learn: dense networks trained with the Lp family."""

from lpfamily._packages import needs

with needs('pip install "lpfamily[train]"', "sklearn"):
    from lpfamily.ecosystem.sklearn.classifier import LpRegularizedClassifier
    from lpfamily.ecosystem.sklearn.regressor import LpRegularizedRegressor

__all__ = ["LpRegularizedClassifier", "LpRegularizedRegressor"]
