"""From detections to figures: COCO results, AP, huddled AP and how sure a difference is."""
