"""How a model learns: pretraining, SFT, reward model, PPO. One file per algorithm, its loop in plain sight."""
