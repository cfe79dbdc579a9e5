"""Ray Serve application: ingress, recommender, history writer."""
