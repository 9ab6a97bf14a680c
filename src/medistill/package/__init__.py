"""What is sent: images, what they are, and proof that nothing was changed. No pickle anywhere."""
