"""Training: RLADTrainer on TRL's GRPOTrainer, and recipes (`rlad train`)."""
