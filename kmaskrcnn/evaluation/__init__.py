"""COCO evaluation of boxes and masks."""

from kmaskrcnn.evaluation.coco_metrics import CocoScores, score
from kmaskrcnn.evaluation.evaluator import Evaluation, check_categories, evaluate

__all__ = ["CocoScores", "Evaluation", "check_categories", "evaluate", "score"]
