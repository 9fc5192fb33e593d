"""What a version says about itself: card, Croissant, provenance, scorecard, licences; one file each."""
