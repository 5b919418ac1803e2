"""IResNet, the network of ArcFace, with or without attention."""
