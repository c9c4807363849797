"""k-means and nearest-centroid assignment on the device."""
