"""Training: recipes, resumable runs, optimisers, schedules, metrics."""
