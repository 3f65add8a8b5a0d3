"""Distillation without rollouts: a teacher's own responses, the correct ones kept, and a student trained on them."""
