"""The paper's Table 1 on any data: the official baselines, vision, both streams, and audio with a frozen and a learning
backbone."""
