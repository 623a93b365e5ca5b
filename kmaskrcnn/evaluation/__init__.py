"""COCO evaluation of boxes and masks, and what the errors are."""

from kmaskrcnn.evaluation.analysis import Analysis, analyze
from kmaskrcnn.evaluation.coco_metrics import CocoScores, score
from kmaskrcnn.evaluation.evaluator import Evaluation, check_categories, evaluate

__all__ = ["Analysis", "CocoScores", "Evaluation", "analyze", "check_categories", "evaluate", "score"]
