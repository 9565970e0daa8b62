"""Follow training live: TensorBoard, Visdom, MLflow, W&B."""
