"""The output network of MTCNN, the face detector, as a backbone."""
