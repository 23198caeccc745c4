/* The attributes that the catalogue keeps, by level: the required ones of QIDO-RS (PS3.18 tables
 * 10.6.3-3 to -5) and C-FIND (PS3.4 tables C.6-2 to -4) that come from the data set, and what
 * viewers and archives usually ask for besides. Specific Character Set is not among them: what the
 * catalogue holds is UTF-8. Each list is in tag order. */
#include "lib/dicom/dcm.h"

static const uint32_t dcm_catalog_study[] = {
    0x00080020, /* StudyDate */
    0x00080030, /* StudyTime */
    0x00080050, /* AccessionNumber */
    0x00080080, /* InstitutionName */
    0x00080090, /* ReferringPhysicianName */
    0x00080201, /* TimezoneOffsetFromUTC */
    0x00081030, /* StudyDescription */
    0x00081048, /* PhysiciansOfRecord */
    0x00081060, /* NameOfPhysiciansReadingStudy */
    0x00081080, /* AdmittingDiagnosesDescription */
    0x00100010, /* PatientName */
    0x00100020, /* PatientID */
    0x00100021, /* IssuerOfPatientID */
    0x00100030, /* PatientBirthDate */
    0x00100032, /* PatientBirthTime */
    0x00100040, /* PatientSex */
    0x00101000, /* OtherPatientIDs */
    0x00101001, /* OtherPatientNames */
    0x00101010, /* PatientAge */
    0x00101020, /* PatientSize */
    0x00101030, /* PatientWeight */
    0x00102160, /* EthnicGroup */
    0x00102180, /* Occupation */
    0x001021b0, /* AdditionalPatientHistory */
    0x00104000, /* PatientComments */
    0x0020000d, /* StudyInstanceUID */
    0x00200010, /* StudyID */
    0x00321060, /* RequestedProcedureDescription */
    0,
};

static const uint32_t dcm_catalog_series[] = {
    0x00080021, /* SeriesDate */
    0x00080031, /* SeriesTime */
    0x00080060, /* Modality */
    0x00080068, /* PresentationIntentType */
    0x00080070, /* Manufacturer */
    0x00081010, /* StationName */
    0x0008103e, /* SeriesDescription */
    0x00081040, /* InstitutionalDepartmentName */
    0x00081050, /* PerformingPhysicianName */
    0x00081070, /* OperatorsName */
    0x00081090, /* ManufacturerModelName */
    0x00180015, /* BodyPartExamined */
    0x00181000, /* DeviceSerialNumber */
    0x00181020, /* SoftwareVersions */
    0x00181030, /* ProtocolName */
    0x00185100, /* PatientPosition */
    0x0020000e, /* SeriesInstanceUID */
    0x00200011, /* SeriesNumber */
    0x00200052, /* FrameOfReferenceUID */
    0x00200060, /* Laterality */
    0x00400244, /* PerformedProcedureStepStartDate */
    0x00400245, /* PerformedProcedureStepStartTime */
    0x00400253, /* PerformedProcedureStepID */
    0x00400254, /* PerformedProcedureStepDescription */
    0x00400275, /* RequestAttributesSequence */
    0,
};

static const uint32_t dcm_catalog_instance[] = {
    0x00080008, /* ImageType */
    0x00080012, /* InstanceCreationDate */
    0x00080013, /* InstanceCreationTime */
    0x00080016, /* SOPClassUID */
    0x00080018, /* SOPInstanceUID */
    0x00080022, /* AcquisitionDate */
    0x00080023, /* ContentDate */
    0x0008002a, /* AcquisitionDateTime */
    0x00080032, /* AcquisitionTime */
    0x00080033, /* ContentTime */
    0x00180050, /* SliceThickness */
    0x00200012, /* AcquisitionNumber */
    0x00200013, /* InstanceNumber */
    0x00200032, /* ImagePositionPatient */
    0x00200037, /* ImageOrientationPatient */
    0x00201041, /* SliceLocation */
    0x00204000, /* ImageComments */
    0x00280002, /* SamplesPerPixel */
    0x00280004, /* PhotometricInterpretation */
    0x00280008, /* NumberOfFrames */
    0x00280010, /* Rows */
    0x00280011, /* Columns */
    0x00280030, /* PixelSpacing */
    0x00280100, /* BitsAllocated */
    0x00280101, /* BitsStored */
    0x00280103, /* PixelRepresentation */
    0x00281050, /* WindowCenter */
    0x00281051, /* WindowWidth */
    0x0040a043, /* ConceptNameCodeSequence */
    0x0040a491, /* CompletionFlag */
    0x0040a493, /* VerificationFlag */
    0x0040a496, /* PreliminaryFlag */
    0x00700080, /* ContentLabel */
    0x00700081, /* ContentDescription */
    0x00700084, /* ContentCreatorName */
    0,
};

const uint32_t *dcm_catalog_tags(enum object_level level)
{
    if (level == OBJECT_STUDY)
        return dcm_catalog_study;
    return level == OBJECT_SERIES ? dcm_catalog_series : dcm_catalog_instance;
}
