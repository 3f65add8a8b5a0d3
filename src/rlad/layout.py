"""The names of what stands in a run's folder, which its writers (train, sft, stages) and its readers (compare, report)
share."""

RECIPE = "recipe.yaml"
BEFORE, AFTER = "evaluation-before.json", "evaluation-after.json"
CHECKPOINTS = "checkpoints"
METRICS = "metrics.jsonl"
VALIDATION = "validation.jsonl"
RECORDS = "records"
MODEL, BEST = "model", "best"
CURVE = "learning_curve.png"
REPORT = "report.html"
SUMMARY = "summary.json"
STAGE = "stage-{}"  # a folder of this layout for each stage of a run in stages
