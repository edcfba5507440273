"""Tables of ratios for detection."""
