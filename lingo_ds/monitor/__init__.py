"""What a person looks at: TensorBoard, progress bar, plots, throughput, the written report."""
